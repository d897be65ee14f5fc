"""Free text: what goes, what stays, how dates move, and that any text is taken."""

import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_ultra_ext.data.deidentify.text import GROWTH, clean_text


def clean(text, days=10, names=()):
    return clean_text(text, days, names).text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2024-03-05", "2024-03-15"),
        ("2024-3-25", "2024-4-4"),
        ("2024年3月5日", "2024年3月15日"),
        ("2024年03月05日", "2024年03月15日"),
        ("2024/3/5", "2024/3/15"),
        ("20240305", "20240315"),
        ("3月25日", "4月4日"),
        ("12月28日", "1月7日"),
        ("24.3.5", "24.3.15"),
        ("2024.12.30", "2025.1.9"),
        ("２０２４年３月５日", "2024年3月15日"),
        ("二〇二四年三月二十五日", "二〇二四年四月四日"),
        ("2024-03-05T10:30", "2024-03-15T10:30"),
        ("2024-03-05 10:30", "2024-03-15 10:30"),
        ("2024年3月", "2024年3月"),
        ("2024年3月28", "2024年4月7"),
        ("2024-02-30", "[日期]"),
        ("生日1980-03-05", "生日[日期]"),
    ],
)
def test_a_date_moves_and_keeps_its_style(before, after):
    assert clean(f"于{before}检查。") == f"于{after}检查。"


def test_all_dates_of_a_text_move_alike():
    text = clean("2024-03-05与2023年12月31日", -40)
    assert text == "2024-01-25与2023年11月21日"
    assert datetime.date(2024, 3, 5) - datetime.date(2024, 1, 25) == datetime.timedelta(days=40)


@pytest.mark.parametrize(
    ("text", "kind", "secret"),
    [
        ("身份证110101199003074258。", "id_number", "199003074258"),
        ("身份证号：11010119900307425X。", "id_number", "425X"),
        ("（110101 19900307 425X）", "id_number", "19900307"),
        ("１３８１２３４５６７８", "phone", "138"),
        ("手机138-1234-5678", "phone", "1234"),
        ("拨打138 1234 5678", "phone", "5678"),
        ("拨打+86 13812345678", "phone", "13812345678"),
        ("拨打0571-87654321转802", "phone", "87654321"),
        ("住院号：20240305", "number", "20240305"),
        ("门诊号 A12", "number", "A12"),
        ("片号US2024030-55", "number", "2024030"),
        ("床号：12", "bed", "12"),
        ("转至加5床", "bed", "5"),
        ("邮件a.b@x.com.cn。", "email", "a.b"),
        ("见https://a.cn/p?id=3。", "url", "a.cn"),
        ("家住幸福里3号楼2单元401室。", "address", "幸福里"),
        ("浙江省杭州市西湖区文三路18号", "address", "文三路"),
        ("在人民路25号跌倒", "address", "25"),
        ("曾在省立第三医院就诊", "institution", "第三"),
        ("92岁", "age", "92"),
        ("年龄：101", "age", "101"),
        ("九十三岁", "age", "三"),
    ],
)
def test_structured_identifiers_go(text, kind, secret):
    result = clean_text(text, 10)
    assert secret not in result.text and result.removed == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "甲状腺右叶见一大小约12mm×8mm低回声结节，3.5cm，BI-RADS 4a，TI-RADS 3，探头7.5MHz。",
        "孕12周+3天，1/3处，C5-6椎间盘，LVEF 65%，CA125 35U/ml，HCG 123456.7。",
        "王氏征阳性，库氏囊肿，巴氏腺囊肿，肖氏反流，霍奇金淋巴瘤，米勒管。",
        "白色分泌物，黄体囊肿，马蹄肾，高回声，方叶肿大，余未见异常，于左侧探及。",
        "血供来自肝动脉，左室收缩正常，房室连接正常，宫腔内见节育器，曾行手术。",
        "患者平卧位，患者高血压病史5年，患者于3天前腹痛，医生建议复查，请结合临床。",
        "建议上级医院就诊，当地医院检查，单位mm，89岁，停经3月，术后5日，2024年。",
        "周边见环状血流，边界尚清，时见强光点，门静脉主干，何时出现，封闭，常规扫查。",
    ],
)
def test_clinical_words_stay(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("患者张伟，男，45岁。", "患者[姓名]，男，45岁。"),
        ("张医生建议复查。", "[姓名]医生建议复查。"),
        ("请欧阳建华主任会诊。", "请[姓名]主任会诊。"),
        ("患者阿依古丽·买买提，女。", "患者[姓名]，女。"),
        ("报告医师：李 明", "报告医师：[姓名]"),
        ("王建国先生", "[姓名]先生"),
        ("患者扎西顿珠，男。", "患者[姓名]，男。"),
        ("Dr. Smith advised", "Dr. [姓名] advised"),
        ("审核医师：无", "审核医师：无"),
    ],
)
def test_names_go_with_their_titles_left(text, after):
    assert clean(text) == after


def test_names_of_the_header_go_wherever_they_stand():
    assert (
        clean("肝内见白云样回声，白 云复查。Bai Yun。", names=["白云", "Bai^Yun"])
        == "肝内见[姓名]样回声，[姓名]复查。[姓名]。"
    )
    assert clean("于肝内，于医生", names=["于"]) == "于肝内，[姓名]医生"
    assert clean("BAI  YUN。", names=["Bai^Yun"]) == "[姓名]。" and clean("ıncı。", names=["INCI"]) == "[姓名]。"


def test_a_header_that_was_never_filled_in_is_no_name():
    assert clean("患者姓名：张三，日期2024-01-01", 0, names=["姓名", "日期"]) == "患者姓名：[姓名]，日期2024-01-01"


def test_numbers_of_the_header_go_in_either_width_and_case():
    text = "编码us00123a，ＵＳ００１２３Ａ，US00123AB，肿块12345。"
    assert clean_text(text, 0, known_numbers=["US00123A"]).text == "编码[编号]，[编号]，US00123AB，肿块12345。"


WORDS = (
    "患者|张伟|医生|，|。|、|男|2024-03-05|12床|号|13812345678|浙江省|路|3|[姓名]|[|]|·|岁|96|月|日|年|高回声|姓名：|床号|医院|"
    "生日|Dr. |Wei|@x.cn|５|二|十|90岁以上|[日期]|主任|王|和|由|家住| |\n"
)
PIECES = st.sampled_from(WORDS.split("|"))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=16).map("".join)), st.integers(-365, 365))
def test_any_text_is_taken_once(text, days):
    first = clean_text(text, days, ["王芳"])
    assert clean_text(first.text, 0, ["王芳"]).text == first.text
    assert len(first.text) <= GROWTH * len(text)
